"""Trades a token of GitHub's for a role's credentials, as the real action does; here nobody issues tokens."""

import os
import re
import urllib.parse
import urllib.request

query = {
    "Action": "AssumeRoleWithWebIdentity",
    "Version": "2011-06-15",
    "RoleArn": os.environ["ROLE"],
    "RoleSessionName": "GitHubActions",
    "DurationSeconds": os.environ["SECONDS_"],
    "WebIdentityToken": "not-signed-by-anybody",
}
if not query["RoleArn"] or not os.environ["REGION"]:
    raise SystemExit("role-to-assume and aws-region are required")
request = urllib.request.Request(
    os.environ["AWS_ENDPOINT_URL"],
    data=urllib.parse.urlencode(query).encode(),
    headers={"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/sts/aws4_request"},  # which service
)
with urllib.request.urlopen(request) as answer:
    said = answer.read().decode()
names = {
    "AccessKeyId": "AWS_ACCESS_KEY_ID",
    "SecretAccessKey": "AWS_SECRET_ACCESS_KEY",
    "SessionToken": "AWS_SESSION_TOKEN",
}
with open(os.environ["GITHUB_ENV"], "a") as file:
    for tag, name in names.items():
        value = re.search(f"<{tag}>(.*?)</{tag}>", said, re.S)[1].strip()
        print(f"::add-mask::{value}")
        file.write(f"{name}={value}\n")
    file.write(f"AWS_REGION={os.environ['REGION']}\nAWS_DEFAULT_REGION={os.environ['REGION']}\n")
