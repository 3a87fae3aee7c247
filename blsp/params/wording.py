"""What the LLM is asked in: keys that behaviours and tasks share."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from blsp.params.record import Record, Words, refuse_placeholder, shown
from blsp.prompts import JOINT, Prompt


class Turn(Record):
    """A content, and what is to be answered to it."""

    content: Words
    answer: Words


class Wording(Record):
    instructions: Annotated[list[Annotated[str, AfterValidator(refuse_placeholder)]], Field(min_length=1)]
    examples: Annotated[list[Turn], Field(default_factory=list)]
    joint: Annotated[str, AfterValidator(refuse_placeholder)] = JOINT
    template: Literal["chat", "none"] = "chat"

    @model_validator(mode="after")
    def joint_joins(self) -> Self:
        if self.joint.count("{content}") != 1:
            raise ValueError(f"joint must have {{content}} once, where the transcript goes; found {shown(self.joint)}")
        if any(self.instructions) and self.joint.count("{instruction}") != 1:
            raise ValueError(
                f"joint must have {{instruction}} once, where the instruction goes; found {shown(self.joint)}"
            )
        return self

    def prompt(self, instruction: str) -> Prompt:
        """How one of the instructions is put to the LLM."""
        turns = tuple((turn.content, turn.answer) for turn in self.examples)
        return Prompt(instruction, turns, self.joint, self.template)
