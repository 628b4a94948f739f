"""The words of the command `fl-sim`. It imports nothing else: `fl-sim --help` is there at once."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; `command` is the name of the command."""
    whole = argparse.ArgumentParser(prog="fl-sim", description="Simulates the poisoning of federated learning, and defences against it.")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="one run: attacked, clean twin and control")
    run.add_argument("presets", nargs="*", metavar="PRESET", help="preset names or TOML files, later ones win (default: digits)")
    run.add_argument("--resume", action="store_true", help="only go on with an interrupted run, never begin one (without it: either)")
    run.set_defaults(command="run")
    sweep = commands.add_parser("sweep", help="all cells of a spec, in one Flower run")
    sweep.add_argument("spec", metavar="SPEC", help="a study that comes with fl-sim by its name, or a TOML file")
    sweep.add_argument("--scale", default="", metavar="NAME", help="one of the spec's [scales]")
    sweep.add_argument("--plan", action="store_true", help="print every cell and about how long it would take, and run nothing")
    sweep.set_defaults(command="sweep")
    search = commands.add_parser("search", help="the worst case of an attack over its own settings, against one strategy")
    search.add_argument("spec", metavar="SPEC", help="a search that comes with fl-sim by its name, or a TOML file")
    search.set_defaults(command="search")
    listing = commands.add_parser("list", help="the runs below a folder")
    listing.add_argument("folder", type=Path, nargs="?", default=Path("runs"), metavar="DIR", help="default: runs")
    listing.set_defaults(command="list")
    report = commands.add_parser("report", help="table, figures and report.html of a sweep, a search or any runs, from their records")
    report.add_argument("folder", type=Path, metavar="DIR", help="folder of the runs, into which the files are written")
    report.add_argument("--parquet", action="store_true", help="also write results.parquet")
    report.add_argument("--latex", action="store_true", help="also write results.tex: mean ± std over seeds, for booktabs")
    report.add_argument("--width", default="page", metavar="W", help="of the figures: column (3.5 in), page (7.16 in; default) or inches")
    report.set_defaults(command="report")
    compare = commands.add_parser("compare", help="two folders of runs: what differs in settings, numbers and speed")
    compare.add_argument("folder", type=Path, metavar="DIR_A", help="a study, or any runs: before the change")
    compare.add_argument("other", type=Path, metavar="DIR_B", help="the same after it")
    compare.add_argument("-o", dest="file", type=Path, metavar="FILE", help="also write it: the tables as .html, every number as .csv")
    compare.set_defaults(command="compare")
    watch = commands.add_parser("watch", help="how far the runs of a folder are while another process plays them, from their records")
    watch.add_argument("folder", type=Path, metavar="DIR", help="folder of a sweep, a search or any runs")
    watch.add_argument("--once", action="store_true", help="print it once, and do not wait until all runs have ended")
    watch.set_defaults(command="watch")
    for command in (sweep, search):
        command.add_argument("--parallel", type=int, metavar="P", help="runs at once (default: one per worker)")
    for command in (run, sweep, search):
        command.add_argument("-c", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="set a key")
        command.add_argument("-o", dest="output_dir", type=Path, default=Path("runs"), metavar="DIR", help="output folder (default: runs)")
        command.add_argument("--transport", choices=("auto", "ray", "flower", "inline"), help="how messages reach the workers")
        command.add_argument("--workers", type=int, metavar="K", help="Ray actors, or SuperNodes with --transport flower")
        command.add_argument("--gpus-per-worker", type=float, metavar="F", help="share of a GPU for each worker")
        command.add_argument("--ray-address", metavar="HOST:PORT", help="join this Ray cluster, as RAY_ADDRESS does (docs/cluster.md)")
    check = commands.add_parser("doctor", help="check this installation, and say what is wrong")
    check.set_defaults(command="doctor")
    return whole
