"""Which lines of a relay's log show that it took a message of ours."""

from __future__ import annotations

import gzip
import io
import itertools

import pytest

from referrals.reference import referral_reference
from referrals.relay_log import LogUnreadable, RelayLog

REFERENCES = [referral_reference(f"CASE-{number}", "mediation") for number in range(4)]
A, B, C, D = (f"<{reference}.0123456789abcdef@police.test>" for reference in REFERENCES)


def read(*logs: str | bytes) -> RelayLog:
    log = RelayLog()
    for one in logs:
        log.read(io.BytesIO(one.encode() if isinstance(one, str) else one))
    return log


def cleanup(queue: str, message_id: str, host: str = "mx1") -> str:
    return f"Nov 24 12:00:00 {host} postfix/cleanup[17]: {queue}: message-id={message_id}\n"


def active(queue: str, host: str = "mx1") -> str:
    return (
        f"2026-11-24T12:00:00.1+00:00 {host} postfix/qmgr[3]: {queue}: from=<jo@police.test>,"
        " size=2345, nrcpt=1 (queue active)\n"
    )


# A list


@pytest.mark.parametrize("line", [A, A.strip("<>"), f"  {A}\t"])
def test_a_line_that_is_nothing_but_a_message_id_counts(line: str) -> None:
    assert read(f"first\n{line}\r\n").taken == {A}


@pytest.mark.parametrize(
    "line",
    [
        A.replace("0123456789abcdef@", "@"),
        A.replace(REFERENCES[0], "AAAA-BBBB-CCCC"),
        A.replace(REFERENCES[0], f"X{REFERENCES[0]}"),
        f"{A} and more",
        "<1234@police.test>",
        REFERENCES[0],
        "",
    ],
)
def test_what_is_not_one_of_our_message_ids_does_not(line: str) -> None:
    assert read(f"{line}\n").taken == set()


def test_another_token_is_another_message() -> None:
    assert A not in read(A.replace("0123", "3210")).taken


# Postfix


def test_postfix_has_taken_what_its_queue_manager_has() -> None:
    log = read(cleanup("4XyzAbC1dE", A) + cleanup("4XyzAbC2dE", B) + active("4XyzAbC1dE"))
    assert (log.taken, log.named) == ({A}, {A, B})


def test_postfix_has_taken_what_it_tries_to_hand_on() -> None:
    tried = (
        "Nov 24 12:00:00 mx1 postfix/smtp[9]: 4XyzAbC1dE: to=<a@council.test>, relay=none,"
        " delay=1, delays=1/0/0/0, dsn=4.4.1, status=deferred (connect to council.test: refused)\n"
    )
    assert read(cleanup("4XyzAbC1dE", A) + tried).taken == {A}


@pytest.mark.parametrize(
    "why",
    [
        "milter-reject: END-OF-MESSAGE from a[10.0.0.1]: 5.7.1 no; from=<j@p.test> proto=ESMTP",
        "reject: body words from a[10.0.0.1]; from=<j@p.test> to=<a@b.test>: 5.7.1 no",
        "removed",
    ],
)
def test_postfix_has_not_taken_what_it_refused_after_the_content(why: str) -> None:
    """Even if the same queue id is then given to another message."""
    refused = f"Nov 24 12:00:00 mx1 postfix/cleanup[17]: 4XyzAbC1dE: {why}\n"
    later = active("4XyzAbC1dE")
    log = read(cleanup("4XyzAbC1dE", A) + refused + later)
    assert (log.taken, log.named) == (set(), {A})


def test_a_queue_id_that_is_given_out_anew_is_another_messages() -> None:
    foreign = cleanup("4XyzAbC1dE", "<x@elsewhere.test>")
    assert read(cleanup("4XyzAbC1dE", A) + foreign + active("4XyzAbC1dE")).taken == set()


def test_a_queue_id_of_another_machine_is_another_messages() -> None:
    assert read(cleanup("4XyzAbC1dE", A, "mx1") + active("4XyzAbC1dE", "mx2")).taken == set()


def test_what_a_sender_chose_does_not_pass_for_a_queue_managers_line() -> None:
    forged = active("4XyzAbC1dE").strip()
    for before in ("NOQUEUE: reject: RCPT from a[10.0.0.1]: 550 no; helo=<", "said no to "):
        line = f"Nov 24 12:00:00 mx1 postfix/smtpd[5]: {before}{forged}\n"
        assert read(cleanup("4XyzAbC1dE", A) + line).taken == set()


def test_what_is_said_before_the_queue_does_not_count() -> None:
    subject = "warning: header Subject: x status=sent (250 ok) from a[10.0.0.1]"
    line = f"Nov 24 12:00:00 mx1 postfix/cleanup[17]: 4XyzAbC1dE: {subject}\n"
    assert read(cleanup("4XyzAbC1dE", A) + line).taken == set()


def test_a_log_that_was_rotated_is_read_as_one() -> None:
    log = read(gzip.compress(cleanup("4XyzAbC1dE", A).encode()), active("4XyzAbC1dE"))
    assert (log.taken, log.lines) == ({A}, 2)


# Others


def test_exim_has_taken_what_arrived() -> None:
    bare = A.strip("<>")
    arrived = f"2026-11-24 12:00:00 1tEx-0001 <= jo@police.test H=a [10.0.0.1] S=9 id={bare}\n"
    refused = f"2026-11-24 12:00:01 H=a [10.0.0.1] rejected after DATA: spam: id={B.strip('<>')}\n"
    assert read(arrived + refused).taken == {A}


def test_exchange_has_taken_what_it_tracked_as_received() -> None:
    log = read(
        "#Software: Microsoft Exchange Server\n"
        "#Fields: date-time,client-hostname,source,event-id,internal-message-id,message-id\n"
        f"2026-11-24T12:00:00Z,host,SMTP,RECEIVE,1,{A}\n"
        f'2026-11-24T12:00:00Z,"a, b",SMTP,FAIL,2,{B}\n'
        f"2026-11-24T12:00:00Z,host,SMTP,HAREDIRECT,3,{C}\n"
    )
    assert (log.taken, log.named) == ({A}, {A, B, C})


@pytest.mark.parametrize(
    ("line", "took"),
    [
        (f"amavis[1]: Passed CLEAN, Message-ID: {A}, queued_as: 4XyzAbC1dE", True),
        (f"gateway: id={A} 250 2.0.0 Ok: queued as 4XyzAbC1dE", True),
        (f"gateway: {A} status=sent", True),
        (f"gateway: reject: {A} would be queued as 4XyzAbC1dE", False),
        (f"gateway: looked at {A}", False),
    ],
)
def test_any_other_line_needs_a_word_of_having_taken_it(line: str, took: bool) -> None:
    log = read(f"{line}\n")
    assert (log.taken, log.named) == ({A} if took else set(), {A})


# Files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_a_list_may_come_as_windows_writes_it(encoding: str) -> None:
    text = f"Überblick\r\n{A}\r\n{B}"
    assert read(text.encode(encoding)).taken == {A, B}
    assert read(gzip.compress(text.encode(encoding))).taken == {A, B}


@pytest.mark.parametrize("cut", [5, 20, -4])
def test_a_compressed_log_that_was_cut_short_is_not_taken_for_whole(cut: int) -> None:
    whole = gzip.compress("".join(f"{n} {A}\n" for n in range(1000)).encode())
    with pytest.raises(LogUnreadable):
        read(whole[:cut])


def test_bytes_that_are_no_text_and_lines_without_an_end_do_no_harm() -> None:
    log = read(bytes(itertools.chain(range(256))) * 2_000 + f"\n{A}\n".encode())
    assert log.taken == {A}
