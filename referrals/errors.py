"""Every error that we raise.

    ReferralsError
      CaseError            the referrer mends the case
        CaseUnreadable       not JSON, not UTF-8, not there
        CaseInvalid          .problems: each with the path of a field
          ColumnsInvalid       the same, of the columns of a file of cases
        ReferralBlocked      .findings: rules that say no; .problems besides
      RoutingError         a person decides
        InterventionUnknown
        NoAddress            the directory has no address to submit to
        AddressUnverified    nobody checked the address lately
      ConfigurationError   the operator mends config/ or the settings; .problems
      DraftError           a drafts folder says no
        DraftChanged         a draft is there that somebody changed
        DraftUnwritable      disk full, read-only, no permission
      OutboxError          the queue says no
        OutboxUnusable       disk full, read-only, locked, or not an outbox
          OutboxRestored       a restored copy that nobody has brought in order yet
        NotInOutbox          no such referral
        NotPossibleNow       its status does not allow it
        LeaseLost            another process has taken the message over
      MessageRefused       a header value that holds CR, LF or NUL, and the like
      DeliveryError        the relay did not take the message; .reply, .stage
        TransientDeliveryError  4yz and network faults: worth trying again
        PermanentDeliveryError  5yz: this message will not be accepted
        DeliveryUncertain       the link broke before the final reply
        RelayRefused            login, certificate or TLS: the operator's fault

Every class has a stable `code` for scripts. No text here may hold personal data: what a referrer
typed is named by the path of its field, never repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from referrals.delivery import Reply
    from referrals.rules import Finding


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input.

    `where` names it (`people.victim.date_of_birth`, or `file: key`), `what` says what is wrong,
    `remedy` what would be right. Neither repeats the value.
    """

    where: str
    what: str
    remedy: str
    code: str = "invalid"

    def __str__(self) -> str:
        return f"{self.where}: {self.what} {self.remedy}".rstrip()


class ReferralsError(Exception):
    """Something that a person can mend; `str()` is fit to show."""

    code = "error"


class CaseError(ReferralsError):
    code = "case"


class CaseUnreadable(CaseError):
    code = "case-unreadable"


class _WithProblems(ReferralsError):
    """Says every problem at once."""

    heading = "{count} to put right:"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = f"{len(self.problems)} problem" + ("" if len(self.problems) == 1 else "s")
        lines = [self.heading.format(count=count), *(f"  {problem}" for problem in self.problems)]
        return "\n".join(lines)


class CaseInvalid(_WithProblems, CaseError):
    code = "case-invalid"
    heading = "The case has {count} to put right:"


class ColumnsInvalid(CaseInvalid):
    heading = "The columns of the file have {count} to put right:"


class ReferralBlocked(CaseError):
    """Rules say that this referral may not be made."""

    code = "blocked"

    def __init__(
        self,
        intervention_id: str,
        findings: Sequence[Finding],
        problems: Sequence[Problem] = (),
    ) -> None:
        self.intervention_id = intervention_id
        self.findings = tuple(findings)
        self.problems = tuple(problems)
        super().__init__(intervention_id, self.findings, self.problems)

    def __str__(self) -> str:
        lines = [f"{self.intervention_id}: this referral can't be made:"]
        lines += [f"  {finding.code}  {finding.text}" for finding in self.findings]
        if self.problems:
            lines.append("and the case has this to put right:")
            lines += [f"  {problem}" for problem in self.problems]
        return "\n".join(lines)


class RoutingError(ReferralsError):
    code = "routing"


class InterventionUnknown(RoutingError):
    code = "intervention-unknown"


class NoAddress(RoutingError):
    code = "no-address"


class AddressUnverified(RoutingError):
    code = "address-unverified"


class ConfigurationError(_WithProblems):
    code = "configuration"
    heading = "The configuration has {count} to put right:"


class DraftError(ReferralsError):
    code = "draft"


class DraftChanged(DraftError):
    code = "draft-changed"


class DraftUnwritable(DraftError):
    code = "draft-unwritable"


class MessageRefused(ReferralsError):
    code = "message-refused"


class DeliveryError(ReferralsError):
    """The relay did not take the message.

    `stage` is the last step begun: connect, greeting, tls, login, sender, recipient, data,
    content. `reply` is what the relay said, if it said anything.
    """

    code = "delivery"

    def __init__(self, text: str, *, stage: str, reply: Reply | None = None) -> None:
        self.stage = stage
        self.reply = reply
        super().__init__(text)


class TransientDeliveryError(DeliveryError):
    code = "delayed"


class PermanentDeliveryError(DeliveryError):
    code = "failed"


class DeliveryUncertain(DeliveryError):
    code = "uncertain"


class RelayRefused(DeliveryError):
    code = "relay-refused"


class OutboxError(ReferralsError):
    code = "outbox"


class OutboxUnusable(OutboxError):
    code = "outbox-unusable"


class OutboxRestored(OutboxUnusable):
    code = "outbox-restored"


class NotInOutbox(OutboxError):
    code = "not-in-outbox"


class NotPossibleNow(OutboxError):
    code = "not-possible-now"


class LeaseLost(OutboxError):
    code = "lease-lost"
