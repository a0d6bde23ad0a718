"""The web process of the plain peer: `granian --interface wsgi web:application`."""

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
