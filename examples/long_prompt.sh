#!/usr/bin/env bash
# Ask a question about a long text with curl; python3 only writes the request.
# The last chunk shows what became of the prompt.
#
#   examples/long_prompt.sh "What does the Third Amendment forbid?"
set -euo pipefail

base_url=${BASE_URL:-http://127.0.0.1:8000/v1}
model=${MODEL:-smollm2-135m-instruct}
text=${TEXT:-$(dirname "$0")/texts/us_founding_documents.txt}
question=${1:-According to the Gettysburg Address, to what proposition was the new nation dedicated?}

python3 - "$model" "$text" "$question" <<'PYTHON' |
import json, pathlib, sys
model, text, question = sys.argv[1:]
print(json.dumps({
    "model": model,
    "messages": [{"role": "user", "content": f"{pathlib.Path(text).read_text()}\n\n{question}"}],
    "max_tokens": 64,
    "temperature": 0,
    "stream": True,
    "structkv": {"return_stats": True},
}))
PYTHON
curl --no-buffer --silent --show-error --fail-with-body ${API_KEY:+--header "Authorization: Bearer $API_KEY"} \
  --header 'Content-Type: application/json' --data-binary @- "$base_url/chat/completions"
