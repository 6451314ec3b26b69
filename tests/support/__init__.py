"""What several folders of tests use: servers, clients, files and browsers under test."""
