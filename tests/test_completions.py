"""`tailrace completions`: its script in a real bash."""

import os
import pty
import subprocess
import time
from pathlib import Path

import pytest

from engine.cli.application import COMMANDS, main, make_application


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Bash's script, as it was printed."""
    assert main(["completions", "bash"]) == 0
    path = tmp_path / "tailrace.bash"
    path.write_text(capsys.readouterr().out)
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    quoted = " ".join(f"'{word}'" for word in ("tailrace", *words))
    code = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; "
        "function=$(complete -p tailrace | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); "
        '$function; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    return {line.strip() for line in result.stdout.splitlines() if line.strip()}


def test_every_command_is_offered(script: Path) -> None:
    names = {name for name in COMMANDS if " " not in name}

    assert names <= completed(script, "")
    assert completed(script, "ver") == {"verify"}
    assert completed(script, "re") == {"read", "resume", "resync"}
    assert {"show", "schema"} <= completed(script, "config", "")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("verify", "--de"), {"--depth"}),
        (("verify", "--depth", ""), {"light", "full"}),
        (("views", "du"), {"duckdb"}),
        (("tail", "orders", "--fol"), {"--follow"}),
        (("completions", ""), {"bash", "zsh", "fish"}),
    ],
)
def test_options_and_their_choices_are_offered(
    script: Path, words: tuple[str, ...], offered: set[str]
) -> None:
    assert completed(script, *words) == offered


def test_tab_in_an_interactive_bash_completes_the_word(script: Path) -> None:
    ours, its = pty.openpty()
    command = ["bash", "--norc", "--noprofile", "-i"]
    environment = {**os.environ, "PS1": "$ ", "TERM": "dumb", "INPUTRC": os.devnull}
    content = b""
    with subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True
    ) as shell:
        os.close(its)
        try:
            os.write(ours, f"source {script}; echo rea''dy\n".encode())
            deadline = time.monotonic() + 20
            while b"ready\r\n" not in content and time.monotonic() < deadline:
                content += os.read(ours, 4096)
            os.write(ours, b"tailrace veri\t")
            while b"tailrace verify " not in content and time.monotonic() < deadline:
                content += os.read(ours, 4096)
        finally:
            shell.kill()
            os.close(ours)

    assert b"tailrace verify " in content


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed_as_it_was_made_and_the_next_step_says_where_it_goes(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["completions", shell])

    told = capsys.readouterr()
    made = make_application().generate_completion(prog_name="tailrace", shell=shell)  # type: ignore[arg-type]
    assert code == 0
    assert told.out == made.rstrip() + "\n"
    assert told.err.startswith(f"next: tailrace completions {shell} > ~/.")
