"""Other libraries' graphs on flowlane's executors. Each module needs the library that it is named after."""
