"""Writes the picture of the dashboard: python docs/picture.py OUT.svg [COLUMNS ROWS], of the home in HYBRIDSUM_HOME."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.home import Home  # noqa: E402
from tui.app import Dashboard  # noqa: E402


async def picture(home: Home, columns: int, rows: int) -> str:
    app = Dashboard(home, start_runner=False)
    async with app.run_test(size=(columns, rows)) as pilot:
        for _ in range(3):  # the verdict of the gate comes with the second look
            await pilot.pause(0.5)
            await app.workers.wait_for_complete()
        await pilot.pause(1)
        return app.export_screenshot(title="hybridsum")


if __name__ == "__main__":
    out, *size = sys.argv[1:]
    columns, rows = map(int, size or (160, 45))
    Path(out).write_text(asyncio.run(picture(Home.find(), columns, rows)), encoding="utf-8")
    print(f"{out}: {columns} x {rows}")
