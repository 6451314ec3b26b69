"""Helpers that several folders of tests use: servers, clients, files and browsers."""
