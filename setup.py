"""Metadata is static and lives in pyproject.toml; torch is never imported here."""

from setuptools import setup

setup()
