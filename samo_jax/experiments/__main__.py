"""Command line: `python -m samo_jax.experiments NAME`."""

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line (None: this process's) and run one study."""
    try:
        import matplotlib

        from samo_jax.experiments.reports import compare
        from samo_jax.experiments.studies import benchmark, modalities
        from samo_jax.experiments.studies.ablation import command as ablation
        from samo_jax.experiments.studies.local_parts import command as local_parts
        from samo_jax.experiments.studies.real import command as real
        from samo_jax.experiments.studies.toy import command as toy
        from samo_jax.experiments.training.configuration import FileParser, Parser
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
    for name, study, summary in (
        ("toy", toy, "two losses of two parameters, drawn"),
        *benchmark.commands(),
        ("compare", compare, "finished runs of a benchmark, compared"),
        ("modalities", modalities, "digits in two halves, two modalities"),
        ("local_parts", local_parts, "SAMO's local parts compared: 2, 11 and 40 tasks"),
        ("real", real, "methods compared on real data, each as good as it gets"),
        ("ablation", ablation, "SAMO's parameters, and how sharp its minima are"),
    ):
        command = commands.add_parser(name, help=summary)
        study.add_arguments(command)
        command.set_defaults(run=study.run)
    args = vars(parser.parse_args(arguments))
    return args.pop("run")(argparse.Namespace(**args))


if __name__ == "__main__":
    sys.exit(main())
