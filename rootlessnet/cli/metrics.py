"""rootlessnet metrics: figures of the instance for Prometheus."""

from __future__ import annotations

from rootlessnet.cli import arguments
from rootlessnet.errors import Error, Failures, UsageError
from rootlessnet.instance import paths, view

OPTIONS = (
    *arguments.COMMON,
    arguments.Option("all", "every instance of this user"),
    arguments.Option("output", "write a file, replaced as a whole", metavar="FILE"),
)
WHAT = "Print figures of the instance in Prometheus' text format."


def main(argv: list[str]) -> int:
    values, words = arguments.parse(argv, OPTIONS)
    if "help" in values:
        print(arguments.help_text("metrics [OPTIONS]", WHAT, OPTIONS))
        return 0
    arguments.no_words(words)
    path = arguments.last(values, "output")
    if "output" in values and not path:
        raise UsageError("metrics: the file has no name: --output FILE")
    if "all" in values:
        instances = view.all_instances()
    else:
        instances = [paths.find(arguments.last(values, "static-dir"))]
    from rootlessnet.watch import exposition
    from rootlessnet.watch.snapshot import Observer

    snapshots, failures = [], []
    for instance in instances:
        try:
            with Observer(instance) as observer:
                snapshots.append(observer.look())
        except Error as error:
            if "all" not in values:
                raise
            failures.append(error)  # the others are to be seen nevertheless
    text = exposition.text(snapshots)
    if path:
        exposition.write_file(path, text)
    else:
        print(text, end="")
    if failures:
        raise Failures("look at every instance", failures)
    return 0
