"""Command line: `python -m samo_jax.experiments NAME`."""

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line (None: this process's) and run one experiment."""
    try:
        import matplotlib

        from samo_jax.experiments import modalities
        from samo_jax.experiments.ablation import experiment as ablation
        from samo_jax.experiments.benchmarks import compare
        from samo_jax.experiments.benchmarks import experiment as benchmarks
        from samo_jax.experiments.configuration import FileParser, Parser
        from samo_jax.experiments.local import experiment as local
        from samo_jax.experiments.toy import experiment as toy
    except ModuleNotFoundError as error:
        name, _, _ = str(error.name).partition(".")
        raise SystemExit(
            f"{name} is missing: pip install 'samo_jax[experiments]'"
        ) from None
    matplotlib.use("Agg")  # pictures go into files
    parser = Parser(prog="python -m samo_jax.experiments")
    commands = parser.add_subparsers(
        metavar="NAME", required=True, parser_class=FileParser
    )
    for name, experiment, summary in (
        ("toy", toy, "two losses of two parameters, drawn"),
        *benchmarks.experiments(),
        ("compare", compare, "finished runs of a benchmark, compared"),
        ("modalities", modalities, "digits in two halves, two modalities"),
        ("local", local, "SAMO's local parts compared: 2, 11 and 40 tasks"),
        ("ablation", ablation, "SAMO's parameters, and how sharp its minima are"),
    ):
        command = commands.add_parser(name, help=summary)
        experiment.add_arguments(command)
        command.set_defaults(run=experiment.run)
    args = vars(parser.parse_args(arguments))
    return args.pop("run")(argparse.Namespace(**args))


if __name__ == "__main__":
    sys.exit(main())
