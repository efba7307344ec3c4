"""Completion in the shell: where click has nothing to propose, the names of files.

click's scripts switch the shell's own completion off, so `mexma mine fre<TAB>` would give nothing: the commands take the names
of files as text, for one may be "-" or that of a model.
"""

from __future__ import annotations

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)


class _Files(ShellComplete):
    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """See click."""
        found = super().get_completions(args, incomplete)
        return found if found or incomplete.startswith("-") else [CompletionItem(incomplete, type="file")]


class _Bash(_Files, BashComplete):
    pass


class _Zsh(_Files, ZshComplete):
    pass


class _Fish(_Files, FishComplete):
    pass


def complete_files() -> None:
    """Have click's completion propose files too, in this whole process."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)
