"""One verb a file: functions of an attempt (`context.OperationContext`) and a request that do not wait."""
