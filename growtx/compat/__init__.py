"""The private parts of other libraries that growtx needs, one file for each library and touched nowhere else.

Every file says with which version it was written (`SEEN`) and what it touches for which purpose (`TOUCHED`);
`tests/test_compat.py` checks both, and `pyproject.toml` allows no other minor version.
"""
