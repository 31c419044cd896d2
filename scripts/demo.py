"""Start the service, speak three sentences into it, print the transcript, stop it."""

import asyncio
import signal
import socket
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import click
import numpy as np
from hibari import SAMPLE_RATE, Hibari

from whisper_byoc.client import LiveClient

SCRIPTS = Path(__file__).parent
SENTENCES = (
    "Good morning, and welcome on board.",
    "The train to the harbour leaves at nine from platform four.",
    "Please keep your ticket until the end of the journey.",
)
PAUSE_SECONDS = 1.5
START_SECONDS = 60.0
STOP_SECONDS = 30.0


def main() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "whisper_byoc", "serve", "--host", "127.0.0.1"]
    service = subprocess.Popen([*command, "--port", str(port)])
    try:
        asyncio.run(wait_until_ready(url, service))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "demo.wav"
            for sentence in SENTENCES:
                click.echo(f"spoken: {sentence}", err=True)
            speak(SENTENCES, path)
            script = [sys.executable, str(SCRIPTS / "stream_wav.py"), str(path)]
            status = subprocess.run([*script, "--url", url, "--realtime"]).returncode
    finally:
        service.send_signal(signal.SIGTERM)
        stopped = service.wait(STOP_SECONDS)
    sys.exit(status or stopped)


def speak(sentences: tuple[str, ...], path: Path) -> None:
    """Write the sentences with pauses between them as a 16-bit WAV file."""
    voice = Hibari()
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), dtype=np.float32)
    pieces = [piece for sentence in sentences for piece in (np.ravel(voice(sentence)), pause)]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(np.concatenate(pieces), -1, 1) * 32767).astype("<i2").tobytes())


async def wait_until_ready(url: str, service: subprocess.Popen[bytes]) -> None:
    """Ask until the service is ready. Exits with its status when it ends instead."""
    async with LiveClient(url) as client, asyncio.timeout(START_SECONDS):
        while not await client.is_ready():
            if service.poll() is not None:
                sys.exit(service.returncode)
            await asyncio.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
