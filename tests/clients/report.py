"""What the clients' checks have shown, as text for the terminal and as the table of docs/clients.md."""

from collections.abc import Mapping, Sequence

from tests.clients.catalogue import Client
from tests.clients.runner import Outcome

Results = Mapping[str, Sequence[Outcome]]  # by the address's name


def lines(client: Client, results: Results) -> list[str]:
    """A line for each address, and one for each failed check."""
    found = []
    for address, outcomes in results.items():
        passed = sum(not outcome.error for outcome in outcomes)
        word = "PASS" if passed == len(outcomes) else "FAIL"
        found.append(f"{word}  {client.title} {client.version}, {address}: {passed} of {len(outcomes)} checks")
        found += [f"      {outcome.check}: {outcome.error}" for outcome in outcomes if outcome.error]
    return found


def is_passed(results: Results) -> bool:
    return all(not outcome.error for outcomes in results.values() for outcome in outcomes)


def table(rows: Sequence[tuple[Client, Results]]) -> str:
    """Markdown. A check works if it works at each address."""
    made = ["| client | version | works | how | since |", "|---|---|---|---|---|"]
    for client, results in rows:
        checks = list(dict.fromkeys(outcome.check for outcomes in results.values() for outcome in outcomes))
        failed = {outcome.check for outcomes in results.values() for outcome in outcomes if outcome.error}
        works = "; ".join(check for check in checks if check not in failed)
        if failed:
            works += f". **Not:** {'; '.join(check for check in checks if check in failed)}"
        made.append(f"| {client.title} | {client.version} | {works} | {client.how} | {client.since} |")
    return "\n".join(made) + "\n"
