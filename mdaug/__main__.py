"""`python -m mdaug` is the `mdaug` command."""

from mdaug.cli import main
from shards.errors import run_process


def command() -> None:
    """Run the command of this process's arguments and end the process."""
    run_process(main)


if __name__ == "__main__":
    command()
