"""How far runs are: lines of text, the live display of a launch, and the view of another terminal."""
