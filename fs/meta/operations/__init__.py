"""One verb a file. Each is a function of one attempt (`work.Work`) and one request, and does not wait."""
