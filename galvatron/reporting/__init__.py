"""A plan, and why it is so, as one page of HTML that needs no network.

What the page shows is one JSON object, `page_data`; the files in `page/` draw it. Nothing is computed there that is not
the layout of a picture.
"""
