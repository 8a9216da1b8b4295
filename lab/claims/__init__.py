"""Published statements as experiments that can fail, one file each: `python -m lab.claims list`.

To test a claim of your own, copy one of the files, lab/claims/suppression.py say, and change it.
"""
