"""`python -m tests.chaos`: exits with 1 unless every answer was right and nothing is left behind."""

import argparse
import asyncio
import sys

from tests.chaos.run import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    plan = Plan(num_requests=arguments.requests, concurrency=arguments.concurrency, seed=arguments.seed)
    report = asyncio.run(run(plan))
    print(report)
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
