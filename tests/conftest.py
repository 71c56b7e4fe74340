"""Its being here makes pytest put this folder on the import path, so that tests can import `support` and `golden`."""
