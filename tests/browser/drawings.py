"""What is really drawn on a chart's canvas."""

from playwright.async_api import Page

LINE, BAND = (0.99, 1.0), (0.1, 0.3)  # how opaque they are
COUNT = """([name, [least, most]]) => {
    const probe = document.createElement('span');
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const wanted = getComputedStyle(probe).color.match(/[0-9]+/g).map(Number);
    probe.remove();
    const canvas = document.querySelector('.plot canvas');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let found = 0;
    for (let at = 0; at < data.length; at += 4) {
        const opacity = data[at + 3] / 255;
        const near = wanted.every((value, part) => Math.abs(data[at + part] - value) <= 6);
        if (near && opacity >= least && opacity <= most) found += 1;
    }
    return found;
}"""


async def drawn(page: Page, colour: str, opacity: tuple[float, float] = LINE) -> int:
    """How many pixels of the first chart have a colour of the page, such as --series-1.

    The grid and the axes are of other colours.
    """
    return int(await page.evaluate(COUNT, [colour, list(opacity)]))
