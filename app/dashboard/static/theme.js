"use strict";(()=>{var e=localStorage.getItem("basin.theme");(e==="light"||e==="dark")&&(document.documentElement.dataset.theme=e);})();
