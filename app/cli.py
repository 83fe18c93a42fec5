"""The `basin` command: what there is, and where it stands."""

import typer

from app import commands
from app.client import adapters, compare, demo, submit
from app.client.errors import EXIT_CODES
from app.environments import commands as environments
from app.files import commands as files
from app.jobs import commands as jobs
from app.keys import commands as keys
from app.models import commands as models
from app.organizations import commands as organizations
from app.organizations import reports
from app.webhooks import commands as webhooks

OPERATING = "Operate a server (on its machine, or with its settings)"
main = typer.Typer(
    name="basin",
    help=f"""Fine-tuning that speaks OpenAI's API and trains LoRA-MGPO adapters.

    {EXIT_CODES}""",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
main.command("demo", context_settings=demo.PASSED_ON)(demo.demo)
main.command("submit")(submit.submit)
main.command("estimate")(submit.estimate)
main.command("compare")(compare.compare)
main.command("pull")(adapters.pull)
main.command("export")(adapters.export)
main.add_typer(jobs.app, name="jobs")
main.add_typer(files.app, name="files")
main.add_typer(models.app, name="models")
main.add_typer(environments.app, name="environments")

main.command("up", rich_help_panel=OPERATING)(commands.start)
main.command("worker", rich_help_panel=OPERATING)(commands.work)
main.command("migrate", rich_help_panel=OPERATING)(commands.bring_up_to_date)
main.command("sweep", rich_help_panel=OPERATING)(commands.sweep)
main.command("fsck", rich_help_panel=OPERATING)(commands.check)
main.command("reseal", rich_help_panel=OPERATING)(commands.reseal)
main.command("usage", rich_help_panel=OPERATING)(reports.show_usage)
main.command("audit", rich_help_panel=OPERATING)(reports.show_audit)
main.add_typer(keys.app, name="keys", rich_help_panel=OPERATING)
main.add_typer(organizations.app, name="orgs", rich_help_panel=OPERATING)
main.add_typer(webhooks.app, name="webhooks", rich_help_panel=OPERATING)


if __name__ == "__main__":
    main()
