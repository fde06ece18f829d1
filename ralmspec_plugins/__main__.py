"""The console script `ralmspec`, also run by `python -m ralmspec_plugins`."""

import sys

from ralmspec_plugins.errors import MissingExtraError

_CLI_PACKAGES = ("typer", "rich", "click", "shellingham")  # installed by the extra `cli`


def main() -> None:
    """Run the command line, or exit with the command that installs what is missing.

    Raises:
        SystemExit: always, with the exit code.
    """
    try:
        from ralmspec_plugins.cli.app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _CLI_PACKAGES:
            raise
        sys.stderr.write(f"Error: {MissingExtraError('cli', package)}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    app(prog_name="ralmspec")


if __name__ == "__main__":
    main()
