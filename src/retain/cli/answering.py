"""Commands that answer: eval, generate, serve."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from retain.cli.shared import Plugins, Run, TrustCode, app, console, progress_for, say
from retain.errors import RetainError
from retain.system import processes
from retain.system.printing import escaped


@app.command("eval")
def evaluate(
    run: Run,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples per task.")] = None,
    general: Annotated[
        str | None,
        typer.Option(
            help="Evaluate on these tasks of lm-evaluation-harness instead (names or YAML files).",
            metavar="A,B",
        ),
    ] = None,
    trust_remote_code: TrustCode = False,
    plugins: Plugins = None,
) -> None:
    """Answer every learned task's test examples again and print the scores; writes nothing."""
    from retain.learner.learned_model import LearnedModel

    if general is not None:
        from retain.report.ability import general_table

        try:
            from retain.harness.ability import general_ability
        except ModuleNotFoundError as missing:
            raise RetainError(
                f"eval --general: {missing.name} is not installed; "
                "run: pip install 'retain[general]'"
            ) from None
        names = [name.strip() for name in general.split(",") if name.strip()]
        changes = general_ability(run, names, limit, progress_for("eval"), trust_remote_code)
        console.print(general_table(changes))
        return
    learned = LearnedModel.load(run, progress_for("eval"), trust_remote_code=trust_remote_code)
    scores = learned.evaluate(limit)
    table = Table("task", "score")
    for name, score in scores.items():
        table.add_row(Text(escaped(name)), f"{score:.1f}")
    console.print(table)


@app.command()
def generate(
    run: Run,
    prompts: Annotated[
        list[str],
        typer.Argument(
            help="Prompts; - reads one per line from standard input.", metavar="PROMPT…"
        ),
    ],
    task: Annotated[
        str | None, typer.Option(help="The task's name, for methods that need it.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per prompt, with the routing.")
    ] = False,
    trust_remote_code: TrustCode = False,
    plugins: Plugins = None,
) -> None:
    """Answer prompts of any learned task."""
    from retain.learner.learned_model import LearnedModel

    try:
        if prompts == ["-"]:
            lines = "".join(sys.stdin).removeprefix("\ufeff").split("\n")
            prompts = [line for line in lines if line.strip()]
        "".join(prompts).encode()
    except UnicodeError:
        raise RetainError("generate: a prompt is not UTF-8 text; convert it") from None
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise RetainError("generate: an empty prompt; give it a text")
    processes.refuse_several("generate")
    learned = LearnedModel.load(run, trust_remote_code=trust_remote_code)
    if len(prompts) == 1 and sys.stdout.isatty() and not as_json:
        from retain.evaluation.streaming import Reply

        learned.answers(
            prompts, task, [Reply(lambda text: print(escaped(text), end="", flush=True))]
        )
        print()
        return
    shown = escaped if sys.stdout.isatty() else str
    for answer in learned.answers(prompts, task):
        if as_json:
            fields = {**vars(answer), **answer.routing_fields()}
            print(shown(json.dumps(fields, ensure_ascii=False)))
        else:
            print(shown(answer.output))


@app.command()
def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    queue: Annotated[
        int, typer.Option(min=1, help="Maximum number of waiting requests; others get 429.")
    ] = 64,
    trust_remote_code: TrustCode = False,
    plugins: Plugins = None,
) -> None:
    """Answer OpenAI's /v1/chat/completions over HTTP; a page at / tries it.

    RETAIN_API_KEY, if set, is the key that requests need, as 'Authorization: Bearer KEY'.
    """
    try:
        from retain.serve import serve as start
    except ModuleNotFoundError as missing:
        raise RetainError(
            f"serve: {missing.name} is not installed; run: pip install 'retain[serve]'"
        ) from None
    processes.refuse_several("serve")
    start(run, host, port, queue, say, trust_remote_code)
