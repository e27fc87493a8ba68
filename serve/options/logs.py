"""The options that say what the server reports while it runs."""

import argparse


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("--access-log", action="store_true", help="write a line to the log for each request, without prompts and keys")
    add("--log-json", action="store_true", help="write the log as JSON objects, one a line, with those of --access-log")
    add(
        "--otel",
        action="store_true",
        help="send a trace of each request to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names, with the other "
        "variables of OpenTelemetry; needs the extra 'otel'",
    )
