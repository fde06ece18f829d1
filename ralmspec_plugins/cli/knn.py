"""`ralmspec knn`: a language model that looks its next token up in a datastore."""

import typer

from ralmspec_plugins.cli.knn_build import build
from ralmspec_plugins.cli.knn_generate import generate
from ralmspec_plugins.cli.knn_perplexity import perplexity

knn = typer.Typer(
    no_args_is_help=True,
    help="KNN-LM: build a datastore, and write with it or measure it.",
)

knn.command()(build)
knn.command()(generate)
knn.command()(perplexity)
