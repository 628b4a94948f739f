"""The ServerApp: Flower's entry point."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from experiments.launch.serve import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run configuration describes."""
    serve(dict(context.run_config), grid)
