"""Draws the client's transition table into `smtp-client.md`: run it after a change to `relaycluster/smtp/client_states.py`.

    python docs/design/draw_smtp_client.py

A test compares the page with what this would write.
"""

from __future__ import annotations

from pathlib import Path

from relaycluster.smtp.client_states import ACTIVITIES, STAGES, TRANSITIONS, State, Trigger

PAGE = Path(__file__).with_name("smtp-client.md")
BEGIN = "<!-- drawn from relaycluster/smtp/client_states.py by draw_smtp_client.py -->\n"
END = "<!-- end of the drawing -->\n"


def _name(state: State) -> str:
    return state.name.replace("_", "")


def drawing() -> str:
    """A state diagram without the breaks (they lead from everywhere to CLOSED), and the whole table."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {_name(State.GREETING)}"]
    for state, row in TRANSITIONS.items():
        lines += [
            f"    {_name(state)} --> {_name(after)}: {trigger}"
            for trigger, after in row.items()
            if trigger not in (Trigger.BREAK, Trigger.REJECTED)
        ]
    lines += [f"    {_name(State.CLOSED)} --> [*]", "```", ""]
    lines += [
        "| state | the client is | what happens → next state | broken off here: the outcome's stage |",
        "|---|---|---|---|",
    ]
    for state, row in TRANSITIONS.items():
        steps = "<br>".join(
            f"{trigger} → {after.name}" for trigger, after in row.items() if trigger is not Trigger.BREAK
        )
        stage = STAGES[state].value if Trigger.BREAK in row else ""
        lines.append(f"| {state.name} | {ACTIVITIES[state]} | {steps} | {stage} |")
    lines += ["", f"From every state but CLOSED: {Trigger.BREAK} → CLOSED.", ""]
    return "\n".join(lines)


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + drawing() + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
