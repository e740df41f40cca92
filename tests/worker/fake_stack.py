"""Runs the real supervisor, PostgreSQL and Temporal around stand-ins for Cairn's own processes."""

import asyncio
import sys
from pathlib import Path

from model.settings import Settings
from worker import stack, stack_plan, stack_programs
from worker.data_folder import StackError

SERVES = """
import http.server, os
class Live(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"reachable": true}]}')
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["CAIRN_API_PORT"])), Live).serve_forever()
"""
SLEEPS = "import time; time.sleep(1000)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(1000)"
FAILS = "raise SystemExit('the fake gives up')"
KINDS = {"serves": SERVES, "sleeps": SLEEPS, "deaf": DEAF, "fails": FAILS}


def main(folder: Path, api: str, agent: str) -> None:
    programs = {"cairn-api": KINDS[api], "cairn-control": SLEEPS, "cairn-agent": KINDS[agent]}
    for name, code in programs.items():
        script = folder / name
        script.write_text(f"#!{sys.executable}\n{code}")
        script.chmod(0o755)
    stack_programs._script = lambda name: str(folder / name)
    try:
        with stack_plan.planned(Settings(), None) as plan:
            asyncio.run(stack.run(plan, lambda endpoint: print(f"ready {endpoint.api_url}", flush=True)))
    except StackError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
