"""The simulators as one process, the way the demo runs them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import aiohttp

SERVE = Path(__file__).with_name("serve.py")


async def post(http: aiohttp.ClientSession, url: str, body: object) -> tuple[int, bytes]:
    async with http.post(url, json=body) as response:
        return response.status, await response.read()


async def test_one_process_serves_all_providers_and_their_bill(tmp_path: Path) -> None:
    """Started by path, from anywhere, with nothing installed but aiohttp."""
    script = tmp_path / "script.json"
    script.write_text(
        json.dumps({"token_delay_ms": 0, "replies": [{"match": "hello", "text": "Hi there!"}]})
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVE), "--script", str(script), cwd=tmp_path, stdout=-1
    )
    try:
        assert process.stdout is not None
        urls = json.loads(await process.stdout.readline())
        headers = {"Authorization": "Bearer x"}
        request = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
        async with aiohttp.ClientSession(headers=headers) as http:
            await post(http, urls["faults_url"], {"llm": [{"status": 500}]})
            chat = f"{urls['openai_base_url']}/chat/completions"
            refused_with, _ = await post(http, chat, request)
            _, answer = await post(http, chat, request)
            await post(http, urls["deepgram_speak_url"], {"text": "Hi there!"})
            async with http.get(urls["bill_url"]) as response:
                bill = await response.json()
    finally:
        process.send_signal(signal.SIGTERM)
        exit_code = await process.wait()

    assert exit_code == 0
    assert refused_with == 500
    assert json.loads(answer)["choices"][0]["message"]["content"] == "Hi there!"
    of_model = bill["providers"]["openai"]["gpt-4o"]
    assert [row["ended"] for row in of_model["requests"]] == ["refused", "completed"]
    assert of_model["totals"]["output_tokens"] == 3
    speech = bill["providers"]["deepgram"]["aura-asteria-en"]
    assert speech["totals"] == {"characters": 9}
