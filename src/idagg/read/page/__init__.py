"""The status page: what it says (`view`), how it looks (`page.html`, `page.css`), how it moves (`page.js`).

`view` makes texts of a `Status` and of the kept windows. `Page` puts them into the template, for the first
answer and for browsers without script. `page.js` puts the same texts into the same places, once a second. So
what the page says is decided in one place; the script has next to no words, and no arithmetic.
"""
