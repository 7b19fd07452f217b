"""The documentation as a site: Markdown of the repository laid out for Sphinx, and pages that are made of code and results."""
