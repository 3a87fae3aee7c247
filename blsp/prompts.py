"""What the LLM is asked in: the words of a prompt around its content, as params.yaml gives them.

How a tokenizer and a chat template put them is blsp.model.chat's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

JOINT = "{instruction} {content}"


@dataclass(frozen=True)
class Prompt:
    """An instruction, and how it is put.

    `examples` are turns before the content, each a content and its answer. `joint` says how instruction and content
    make one message. `template` none: the LLM goes on from plain text, without its chat template.
    """

    instruction: str
    examples: tuple[tuple[str, str], ...] = ()
    joint: str = JOINT
    template: Literal["chat", "none"] = "chat"

    @property
    def style(self) -> dict[str, Any] | None:
        """All but the instruction, as JSON has it; None where all of it is the default."""
        if self == Prompt(self.instruction):
            return None
        return {"examples": [list(turn) for turn in self.examples], "joint": self.joint, "template": self.template}

    @classmethod
    def of(cls, instruction: str, style: Mapping[str, Any] | None = None) -> "Prompt":
        """The prompt of this instruction and style (see `style`)."""
        if style is None:
            return cls(instruction)
        examples = tuple((content, answer) for content, answer in style["examples"])
        return cls(instruction, examples, style["joint"], style["template"])

    def around(self) -> tuple[str, str]:
        """What stands before and after the content in the user's message.

        White space that joins an empty instruction to the content is left out.
        """
        before, after = (part.replace("{instruction}", self.instruction) for part in self.joint.split("{content}"))
        return (before, after) if self.instruction else (before.lstrip(), after.rstrip())
