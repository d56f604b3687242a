"""Pictures of the graphs of a program: SVG and a page of HTML with a layout of our own, and text for Graphviz.

Names may be a stranger's. Each writer escapes what it writes, and nothing that a name says can be more than text.
"""
