"""OpenAI's Batch API as jobs that survive a crash: half the price, within a day.

``jobs`` is what a project calls, ``models`` the tables that remember how far a job is.
"""
