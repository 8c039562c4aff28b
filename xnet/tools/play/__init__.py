"""A page to play with: draw a digit and watch, train a small classifier and watch.

`sheet` is what is drawn on, `points` what a classifier learns, `classifier` how it does; none of
them knows of a browser. `pages` shows them in one, by NiceGUI (``pip install "xnet-nn[play]"``).
"""
