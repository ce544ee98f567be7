"""Benchmarks of pgkmeans_sk against its peers; run them with ``python -m benchmarks --help``.

Results are JSON files with versions and machine under ``benchmarks/results``; the tables in
``docs`` are made from those files by ``python -m benchmarks report``. Nothing here gates a test.
"""
