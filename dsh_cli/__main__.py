"""`python -m dsh_cli`, for machines where another program is named `dsh`."""

from dsh_cli.cli import app

if __name__ == "__main__":
    app(prog_name="dsh")
