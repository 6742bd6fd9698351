"""What the page cache holds of a share: looked at, doubted, dropped.

Every figure has the method by which it was found.
"""
