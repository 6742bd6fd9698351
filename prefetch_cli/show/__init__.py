"""What people read of a run: lines, the bar, warnings, on whatever the streams are.

The only package that knows rich.
"""
