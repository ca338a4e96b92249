"""Ask a question about a long text, watch the answer come, and see how little of the prompt was kept.

python examples/long_prompt.py
python examples/long_prompt.py --method full        # the same, with nothing left out
python examples/long_prompt.py --text book.txt --question "Who is the narrator?"
"""

import argparse
import os
from pathlib import Path

from openai import OpenAI

TEXT = Path(__file__).parent / "texts" / "us_founding_documents.txt"
QUESTION = "According to the Gettysburg Address, to what proposition was the new nation dedicated?"


def main() -> None:
    options = arguments()
    client = OpenAI(base_url=options.base_url, api_key=os.environ.get("API_KEY", "unused"))
    stream = client.chat.completions.create(
        model=options.model or client.models.list().data[0].id,
        messages=[{"role": "user", "content": f"{options.text.read_text()}\n\n{options.question}"}],
        max_tokens=options.max_tokens,
        temperature=0,
        stream=True,
        extra_body={"structkv": {"method": options.method, "kv_retention": options.kv_retention, "return_stats": True}},
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
    show(chunk.structkv)  # the last chunk carries what became of the prompt


def show(stats: dict) -> None:
    kept = sum(stats["kept_tokens_per_layer"]) / len(stats["kept_tokens_per_layer"])
    print(f"\n{stats['method']}: {stats['prompt_tokens']} prompt tokens, {kept:.0f} kept per layer on average")
    print(f"skeleton   {stats['skeleton_bytes'] / 2**20:8.2f} MiB of {stats['full_kv_bytes'] / 2**20:.2f} MiB")
    print(f"pivot      {'none' if stats['pivot_layer'] is None else 'layer ' + str(stats['pivot_layer'])}")
    for name in ("queue", "prefill", "transfer", "ttft"):
        print(f"{name:10} {stats[name + '_seconds']:8.3f} s")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default=os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1"))
    parser.add_argument("--model", help="the served model if not given")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--method", default="structkv", choices=["structkv", "full"])
    parser.add_argument("--kv-retention", type=float, default=0.1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
