"""What the studies of images and moles measured, as tables and figures: `tables`, `figures`; and `pull`, why a clip helps moles."""
