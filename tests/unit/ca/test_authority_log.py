"""The authority's log: JSON lines, whoever writes them."""

import json
import subprocess
import sys

_SAYS_SOMETHING = """
import logging, warnings
from ca.authority import logs
logs.set_up()
logs.log("issued", serial="1")
logging.getLogger("psycopg").warning("error ignored:\\n%s", "the connection is lost")
logging.getLogger("psycopg").info("nothing that matters")
warnings.warn("soon gone")
"""


def test_what_libraries_say_is_a_line_of_json_too() -> None:
    done = subprocess.run([sys.executable, "-c", _SAYS_SOMETHING], capture_output=True, text=True, check=True)
    own, library, warning = map(json.loads, done.stderr.splitlines())
    assert (own["event"], own["serial"]) == ("issued", "1")
    assert (library["event"], library["logger"], library["level"]) == ("library", "psycopg", "warning")
    assert library["message"] == "error ignored:\nthe connection is lost"
    assert (warning["event"], warning["logger"]) == ("library", "py.warnings")
