"""Sessions and messages are for people's pages. Programs bring a token to the API and need none of it;
setting all of it up cost a tenth of what a mail takes to hand over."""

from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest
from django.http.response import HttpResponseBase

API = "/api/v1/"


class _NotForTheApi:
    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info.startswith(API):
            return self.get_response(request)  # type: ignore[attr-defined, no-any-return]
        return super().__call__(request)  # type: ignore[misc, no-any-return]


class PageSessions(_NotForTheApi, SessionMiddleware):
    pass


class PageAuthentication(_NotForTheApi, AuthenticationMiddleware):
    pass


class PageMessages(_NotForTheApi, MessageMiddleware):
    pass
