"""The `referrals` command. Only click is imported until a command is chosen."""

from __future__ import annotations

import gc
import io
import os
import sys
from contextlib import suppress
from typing import NoReturn

import click

from referrals import __version__

# Pydantic's plugins are looked for in everything that is installed, and would see personal data.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

# name → (module, one line for the help); modules are imported when their command runs.
_SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Look things up": {
        "list": ("directory", "List the interventions and who takes them."),
        "show": ("directory", "Show one intervention: fields, rules, addresses."),
        "suggest": ("cases", "Say which interventions fit a case, and why others don't."),
    },
    "Write a case": {
        "new": ("cases", "Print a sample case to start from."),
        "schema": ("cases", "Print the JSON Schema of a case."),
        "check": ("cases", "Check a case: every problem, every rule."),
    },
    "Refer": {
        "preview": ("letters", "Show the e-mail that would be made."),
        "draft": ("letters", "Save the e-mail as an .eml draft."),
        "send": ("relay", "Submit the e-mail through the relay."),
        "batch": ("batch", "Check, draft or send every row of a spreadsheet."),
    },
    "Follow it": {
        "outbox": (
            "queue",
            "What was queued: list, show, retry, cancel, purge, export, erase, restored.",
        ),
        "deliver": ("queue", "Try every queued message that is due."),
        "worker": ("worker", "Go on delivering, beside others on other machines (PostgreSQL)."),
        "due": ("followup", "List referrals whose answer is overdue, and draft reminders."),
        "ack": ("followup", "Record that an agency has answered."),
        "audit": ("account", "The disclosure log: list, verify, export."),
    },
    "Look after it": {
        "serve": ("serve", "Run the page: the same service in a browser."),
        "backup": ("restored", "Copy the outbox, while others use it."),
        "migrate": ("migrate", "Make the outbox's tables in PostgreSQL, or bring them up to date."),
        "hold": ("hold", "Let nothing go to an agency for now, such as when its address is wrong."),
        "release": ("hold", "End a hold: what was kept goes to the address that is right now."),
        "directory": ("directory", "The addresses: list, check, and record that one is right."),
        "accounts": ("accounts", "Who can sign in to the page: list, add, change, remove."),
        "tokens": ("accounts", "Tokens for programs that use the page's API."),
        "templates": ("upkeep", "Check the templates, or start a new one."),
        "relay": ("relays", "The relays: list them, check them without sending anything."),
        "sink": ("relay", "Run a local relay that goes nowhere, to try things out."),
        "doctor": ("upkeep", "Show the settings in force and what is missing."),
    },
}
_MODULES = {name: entry[0] for section in _SECTIONS.values() for name, entry in section.items()}

EXIT_CODES = """\
\b
Exit codes:
  0   done
  1   a fault of ours, or the output could not be written
  2   wrong use of the command
  3   the case has something to put right, or can't be read
  4   a rule blocks the referral
  5   the configuration or a setting is wrong
  6   a draft or the outbox could not be used, or another draft is there
  7   no such intervention, no address, or an address that nobody verified
  8   delayed: not relayed now, tried again later
  9   failed: the relay will not take this message
  10  uncertain: the link broke before the relay's last word
  11  the relay refused us: login, certificate or TLS
  12  the audit was tampered with
  130 stopped by Ctrl-C; 141 whoever read the output has gone"""


_READER_GONE = 141  # as any command in a pipe whose reader has left: 128 and SIGPIPE


class _Commands(click.Group):
    """Commands in sections, each imported only when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _MODULES.get(cmd_name)
        if module is None:
            return None
        from importlib import import_module

        command: click.Command = getattr(
            import_module(f"referrals.cli.{module}"), f"{cmd_name}_command"
        )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        typed = args[0]  # click empties the list when it takes the word for an option
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(typed, _MODULES, 1)
            if not close:
                raise
            hint = f"{error.message} Did you mean '{close[0]}'?"
            raise click.UsageError(hint, ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (_, line) in commands.items()])


@click.command(
    cls=_Commands,
    epilog=f"""\b
Examples:
  referrals new mediation > case.json
  referrals check case.json
  referrals draft mediation case.json
  referrals draft --all case.json

{EXIT_CODES}

Shell completion: eval "$(_REFERRALS_COMPLETE=bash_source referrals)"; zsh_source and fish_source
for the other shells.""",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="referrals", message="%(prog)s %(version)s")
def cli() -> None:
    """Referral e-mails for people harmed by hate crime and anti-social behaviour.

    A case goes in; for each intervention an e-mail to the right agency comes out, as an .eml
    draft or through your SMTP relay. Nothing is submitted unless you say so.
    """


def wants_colour() -> bool | None:
    """False if NO_COLOR says so; None leaves it to whether somebody is looking."""
    return False if os.environ.get("NO_COLOR") else None


def main(argv: list[str] | None = None) -> int:
    """Run the command; every error becomes one clear message and an exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    as_json = "--json" in arguments
    try:
        code = cli.main(
            arguments, prog_name="referrals", standalone_mode=False, color=wants_colour()
        )
    except click.exceptions.Abort:
        click.echo("Stopped.", err=True)
        return 130
    except click.ClickException as error:
        if as_json:
            _say_json(str(getattr(error, "code", "usage")), error.format_message())
        else:
            error.show()
        return error.exit_code
    except SystemExit as error:
        # Click leaves in this way after completing a word for a shell, and when it meets EPIPE.
        completed = "_REFERRALS_COMPLETE" in os.environ and isinstance(error.code, int)
        return int(error.code or 0) if completed else _READER_GONE
    except BrokenPipeError:
        return _READER_GONE
    except Exception as error:
        from referrals.cli.faults import report

        return report(error, as_json)
    return code if isinstance(code, int) else 0


def run() -> NoReturn:
    """The process: `main`, its output surely written, and out.

    Leaving at once, without taking every module apart first, is a twentieth of the time that
    `draft` takes; and a full disk or a closed pipe is noticed here rather than never.
    """
    gc.disable()  # a command lives too briefly to gain by it; `sink` switches it on again
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that can't show a letter
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        code = _READER_GONE
    except OSError as error:
        code = 1
        with suppress(OSError):
            click.echo(f"Error: the output could not be written: {error.strerror}.", err=True)
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _open_what_is_closed() -> None:
    """Somebody's `>&-` leaves None, and the number free for the next file: a draft, perhaps."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _say_json(code: str, message: str) -> None:
    import json

    click.echo(json.dumps({"ok": False, "error": {"code": code, "message": message}}, indent=2))
